"""Make a language model forget one named thing."""
