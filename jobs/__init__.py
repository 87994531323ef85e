"""One function for each command: the Python API that the command line renders."""
