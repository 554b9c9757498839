"""Entry points: the command line, `ray job submit` targets and the recipes."""
