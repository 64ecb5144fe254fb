"""The measures of a diagnosis: a module for each, with an `ENTRY`; the module's name chooses it."""
