package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/causeway-net/causeway/cni-plugin/server"
	"github.com/causeway-net/causeway/cni-plugin/veth"
	"github.com/causeway-net/causeway/internal/kubeapi"
	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/task"
	"github.com/causeway-net/causeway/internal/watch"
	"github.com/causeway-net/causeway/internal/watch/file"
	watchkube "github.com/causeway-net/causeway/internal/watch/kube"
	"github.com/causeway-net/causeway/internal/watch/last"
	"github.com/causeway-net/causeway/ipam"
	ipamfile "github.com/causeway-net/causeway/ipam/file"
	ipamkube "github.com/causeway-net/causeway/ipam/kube"
)

// kubernetes is the --datastore that is the Kubernetes API.
const kubernetes = "kubernetes"

// datastore is where objects come from and blocks are kept: a folder, or the Kubernetes
// API. The rest of the agent does not know which.
type datastore struct {
	tasks   []task.Task // they publish snapshots
	store   ipam.Store
	private bool // no other node sees the store
	// resync, searchEvery and linger are ipam's, where requests cost others something; 0: its
	// own.
	resync, searchEvery, linger time.Duration
	// trouble says why what was published may be old, or nil.
	trouble func() error
	// workload looks up a pod; nil in a folder, which knows none.
	workload func(ctx context.Context, namespace, pod, uid string) (server.Workload, error)
	clients  *kubeapi.Clients // nil for a folder
	// policies is where this node says what it knows of itself that policy is about.
	policies *watch.Policies
	// needs is enforce.Config.Needs; nil in a folder, which is read whole.
	needs func(pods bool, service func(model.ServiceID) bool) (known bool)
}

// published is where a datastore's news go.
type published struct {
	snapshot func(*model.Snapshot)
	policy   func(*watch.PolicyUpdate)
	// announceKey hears the key that agents share; nil where nobody asks.
	announceKey func([]byte)
}

// openDatastore makes the parts; nothing is read yet.
func openDatastore(o options, log *slog.Logger, to published) (*datastore, error) {
	if o.datastore == kubernetes {
		return openKubernetes(o, log, to)
	}
	return openFolder(o, log, to)
}

func openFolder(o options, log *slog.Logger, to published) (*datastore, error) {
	dir, shared, err := o.folder()
	if err != nil {
		return nil, err
	}
	// A folder that is not there is not made: it may be one that is not mounted yet.
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("--datastore %s: %w; make the folder or mount it first", o.datastore, err)
	}
	store, err := ipamfile.New(ipamfile.Config{Dir: dir, Log: log, Shared: shared})
	if err != nil {
		return nil, err
	}
	source, err := file.New(file.Config{Dir: dir, Node: o.nodeName, SecretNamespace: o.secretNamespace, Log: log, Publish: to.snapshot, Policy: to.policy})
	if err != nil {
		return nil, err
	}
	return &datastore{
		tasks: []task.Task{source}, store: store, private: !shared, trouble: func() error { return nil }, policies: source.Policies(),
	}, nil
}

func openKubernetes(o options, log *slog.Logger, to published) (*datastore, error) {
	clients, err := o.clients()
	if err != nil {
		return nil, err
	}
	store, err := ipamkube.New(ipamkube.Config{Clients: clients, Node: o.nodeName, Log: log})
	if err != nil {
		return nil, err
	}
	keeper := last.NewKeeper(filepath.Join(o.runDir, "snapshot.json"), o.nodeName, log, to.snapshot)
	policy := last.NewPolicyKeeper(filepath.Join(o.runDir, "policy.json"), o.nodeName, log, to.policy)
	source, err := watchkube.New(watchkube.Config{
		Clients: clients, Node: o.nodeName, SecretNamespace: o.secretNamespace, Log: log, Publish: keeper.Publish, Policy: policy.Publish, AnnounceKey: to.announceKey,
		// Runtimes call a pod's own interface so.
		Interface: func(namespace, pod string) string {
			return veth.HostName(model.AttachmentKey{IfName: "eth0"}, namespace, pod)
		},
	})
	if err != nil {
		return nil, err
	}
	return &datastore{
		tasks: []task.Task{source, keeper, policy}, store: store, clients: clients, policies: source.Policies(), needs: source.Needs,
		resync: ipamkube.Resync, searchEvery: ipamkube.SearchEvery, linger: ipamkube.Linger,
		trouble: func() error { return watchTrouble(source.Status()) },
		workload: func(ctx context.Context, namespace, pod, uid string) (server.Workload, error) {
			w, err := source.Workload(ctx, namespace, pod, uid)
			return server.Workload{
				UID: w.UID, Annotations: w.Annotations, NamespaceAnnotations: w.NamespaceAnnotations, NamespaceLabels: w.NamespaceLabels,
			}, err
		},
	}, nil
}

// clients are those of the agent's own account, or of --kubeconfig's user.
func (o options) clients() (*kubeapi.Clients, error) {
	cfg, err := kubeapi.Load(o.kubeconfig, "causeway-agent/"+version)
	if err != nil {
		return nil, fmt.Errorf("--datastore %s: %w; outside a pod name a file with --kubeconfig", kubernetes, err)
	}
	return kubeapi.New(cfg)
}

// watchTrouble says that the API server does not answer, or names the watches without which
// the agent cannot do, with one reason: it is most often the same. Kinds that it can do
// without are problems of the snapshot.
func watchTrouble(st watchkube.Status) error {
	var names []string
	var why string
	for _, w := range st.Watches {
		if w.Failing != "" && (w.Needed || !st.Answering) {
			names, why = append(names, w.Name), cmp.Or(why, w.Failing)
		}
	}
	switch {
	case len(names) > 0:
		return fmt.Errorf("%d watches fail, that of %s: %s", len(names), names[0], why)
	case !st.Synced:
		return errors.New("not everything was read yet")
	}
	return nil
}

// folder reads --datastore.
func (o options) folder() (dir string, shared bool, err error) {
	u, err := url.Parse(o.datastore)
	if err != nil || u.Scheme != "file" || u.Host != "" || !filepath.IsAbs(u.Path) {
		return "", false, fmt.Errorf("--datastore %q: use kubernetes, file:///DIR, or file:///DIR?shared=true when several nodes see the folder", o.datastore)
	}
	for key, values := range u.Query() {
		switch {
		case key == "shared" && len(values) == 1 && (values[0] == "true" || values[0] == "false"):
			shared = values[0] == "true"
		default:
			return "", false, fmt.Errorf("--datastore %q: only shared=true or shared=false may follow the folder", o.datastore)
		}
	}
	return u.Path, shared, nil
}
