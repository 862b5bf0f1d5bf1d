"""What `striate check` looks at of a run, some of which `striate run` looks at too before it computes."""
