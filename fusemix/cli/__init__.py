"""The command ``fusemix``: each module reads the flags of one command, calls the library and prints the result."""
