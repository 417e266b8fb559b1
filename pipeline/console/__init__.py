"""The command line: the commands and their options, settings from the environment and from files, errors as people read them."""
