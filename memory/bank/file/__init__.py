"""The bank's file: records and the tables that hold them."""
