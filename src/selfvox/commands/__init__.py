"""Commands: one file per verb of the command line; a file's name is the verb's."""
