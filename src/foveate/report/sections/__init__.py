"""The sections of a report, one file each; each gives `section(folder) -> Html`."""
