"""The measures of a diagnosis: a module for each, called by the name that it is chosen by, with an `ENTRY`."""
