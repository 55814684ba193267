"""What the console script does: a module for each command, with the function behind it.

Each has ``add_arguments(parser)`` and ``run(args)``, which prints what the function
returns. What a user can put right is raised as a ValueError or SystemExit, and a model
that the teacher cannot repeat as a RuntimeError.
"""
