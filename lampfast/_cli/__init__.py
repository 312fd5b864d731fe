"""The command `lampfast`: its commands, its demo, and how it measures."""
