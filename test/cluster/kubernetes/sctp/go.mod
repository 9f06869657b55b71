module github.com/causeway-net/causeway/test/cluster/kubernetes/sctp

go 1.26.0
