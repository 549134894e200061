"""The scripts that make the nano zoo: small towers by the objectives that name them, and two small LMs."""
