"""What attention looks like outside a viewer: colours and animations."""
