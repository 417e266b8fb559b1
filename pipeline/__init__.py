"""The stages: one module is one command is one plain function, paths and a config in, a result out."""
