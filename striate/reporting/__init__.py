"""The parts of the report page: each module turns artifacts into one picture, table or block of HTML."""
