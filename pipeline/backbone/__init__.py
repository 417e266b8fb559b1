"""The frozen image network: find it by name, load its weights, choose its precision and describe it so that another machine can rebuild it."""
