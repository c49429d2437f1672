"""The contract: (state, call, time) -> state or Refused. The specification that every engine keeps."""
