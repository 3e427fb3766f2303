"""Decodes image bytes to pixels in worker processes; if one of them dies, the job goes on."""
