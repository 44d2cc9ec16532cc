"""Who may reach what: the model, its TOML, the decision. Pure: no I/O, no clock."""
