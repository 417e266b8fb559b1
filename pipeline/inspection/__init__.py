"""Check datasets, feature files, runs and the installation, and print what they contain."""
