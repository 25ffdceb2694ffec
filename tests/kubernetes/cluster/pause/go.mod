module carillon.test/pause

go 1.24
