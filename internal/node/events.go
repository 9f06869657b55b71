package node

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/flowcontrol"
)

// Events beyond a burst of eventBurst pass at eventsPerSecond; the others are counted and
// dropped: a node on which nothing works must not burden the API server as well.
const (
	eventBurst      = 25
	eventsPerSecond = 0.5
	maxNote         = 1024 // bytes (noteLengthLimit, k8s.io/kubernetes/pkg/apis/core/validation/events.go)
)

// recorder sends events. Repetitions of one event are counted up in one object by client-go.
type recorder struct {
	broadcaster events.EventBroadcaster
	to          events.EventRecorder
	limit       flowcontrol.PassiveRateLimiter
	drops       atomic.Int64
}

func newRecorder(c kubernetes.Interface, log *slog.Logger) *recorder {
	b := events.NewBroadcaster(&sink{EventSink: &events.EventSinkImpl{Interface: c.EventsV1()}, log: log})
	return &recorder{broadcaster: b, to: b.NewRecorder(scheme.Scheme, FieldManager), limit: flowcontrol.NewTokenBucketPassiveRateLimiter(eventsPerSecond, eventBurst)}
}

// sink logs what client-go would in a form of its own: the first of a row of failures.
type sink struct {
	events.EventSink
	log     *slog.Logger
	failing atomic.Bool
}

// Create is EventSink's.
func (s *sink) Create(ctx context.Context, e *eventsv1.Event) (*eventsv1.Event, error) {
	out, err := s.EventSink.Create(ctx, e)
	s.note(e, err)
	return out, err
}

// Patch is EventSink's.
func (s *sink) Patch(ctx context.Context, e *eventsv1.Event, data []byte) (*eventsv1.Event, error) {
	out, err := s.EventSink.Patch(ctx, e, data)
	s.note(e, err)
	return out, err
}

func (s *sink) note(e *eventsv1.Event, err error) {
	if failed := err != nil && !apierrors.IsNotFound(err); s.failing.Swap(failed) != failed && failed {
		s.log.Warn("events are not sent", "about", e.Regarding.Kind+" "+e.Regarding.Name, "reason", e.Reason, "error", err)
	}
}

// start sends what comes until ctx is cancelled.
func (r *recorder) start(ctx context.Context) error {
	return r.broadcaster.StartRecordingToSinkWithContext(ctx)
}

func (r *recorder) dropped() int { return int(r.drops.Load()) }

func (r *recorder) send(about *corev1.ObjectReference, kind, reason, action, note string) {
	if !r.limit.TryAccept() {
		r.drops.Add(1)
		return
	}
	if len(note) > maxNote {
		note = strings.ToValidUTF8(note[:maxNote-3], "") + "..."
	}
	r.to.Eventf(about, nil, kind, reason, action, "%s", note)
}

// NodeEvent sends an event about this Node; kind is corev1.EventTypeNormal or
// EventTypeWarning. It never blocks.
func (r *Reporter) NodeEvent(kind, reason, note string) { r.nodeEvent(kind, reason, "Network", note) }

// nodeEvent is NodeEvent with an action. Events of one reason and action that come within
// minutes are one object, with the first one's note and a count.
func (r *Reporter) nodeEvent(kind, reason, action, note string) {
	uid := types.UID(r.cfg.Node) // as the kubelet's events have it
	r.mu.Lock()
	if r.node != nil {
		uid = r.node.UID
	}
	r.mu.Unlock()
	r.events.send(&corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: r.cfg.Node, UID: uid}, kind, reason, action, note)
}

// PodEvent sends an event about a pod of this node. It never blocks.
func (r *Reporter) PodEvent(namespace, name, uid, kind, reason, note string) {
	r.events.send(&corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: namespace, Name: name, UID: types.UID(uid)}, kind, reason, "AttachPod", note)
}
