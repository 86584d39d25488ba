"""The methods of Stage II by their names, as arms of a study are called, too; for the command line without pydantic."""

METHODS = ("sft", "kd", "lwd", "ted")
