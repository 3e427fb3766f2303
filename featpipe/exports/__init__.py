"""What is written for people without featpipe: whole networks, their cards, tables of rows."""
