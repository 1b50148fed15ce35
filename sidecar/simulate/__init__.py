"""Policies and guards tried on logins: honest life with attacks in it, made up, or a real data set."""
