"""Migrations of the service, oldest first."""
