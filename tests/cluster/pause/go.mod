module adit.dev/cluster/pause

go 1.26
