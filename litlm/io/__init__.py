"""Reading and writing files: errors that name the file, writes that are whole or not at all, YAML."""
