"""Rewards behind HTTP: a JSON wire format, its server and its client, and a judge for vision-language endpoints."""
