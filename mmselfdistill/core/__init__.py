"""Student, teacher and terms to losses: all that is no Runner's and no family's."""
