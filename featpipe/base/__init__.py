"""What every other room stands on: feature spaces, errors, ids, files on disk, hardware."""
