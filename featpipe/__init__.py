"""featpipe: run a frozen network over pictures once, then train heads in seconds."""
