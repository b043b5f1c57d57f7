"""What is said about a finished run: report, card, tables and log."""
