"""Where training data comes from: files, folders and the hub, each read as a stream of records."""
