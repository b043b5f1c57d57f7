"""What training leaves behind: bundles, the registry that numbers them, run folders, and the predictor over them."""
