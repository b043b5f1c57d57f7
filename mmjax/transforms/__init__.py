"""What a Batch passes through on its way to the network: pairs of pure functions, fitted on training rows."""
