"""What a teacher says of each example of a labelled set, kept on disk, so that later epochs need no teacher."""
