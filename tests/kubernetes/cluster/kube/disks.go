package main

import (
	"context"
	"flag"
	"log"
	"time"

	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// The cluster's disks: volumes for the storage classes of the provisioner carillon.test/disk.
// Each is a directory of this machine, which all nodes share; who may use it is up to the
// class's parameters:
//
//	reach: node (a local disk), zone, or any (a network disk)
//	sized: "true" makes it a file system of its own that is as large as was asked for
const (
	provisionerName = "carillon.test/disk"
	provisionedBy   = "pv.kubernetes.io/provisioned-by"
	selectedNode    = "volume.kubernetes.io/selected-node"

	// Also without an event everything is looked at this often: what failed is tried again.
	lookInterval = 5 * time.Second
)

// What this controller sees and where it puts volumes.
type controller struct {
	client  kubernetes.Interface
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	nodes   corelisters.NodeLister
	classes storagelisters.StorageClassLister
	root    string
}

func disks(arguments []string) {
	flags := flag.NewFlagSet("disks", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "how to reach the API server")
	root := flags.String("root", "", "the directory of all volumes")
	flags.Parse(arguments)
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	config.QPS, config.Burst = 200, 400
	client := kubernetes.NewForConfigOrDie(config)
	factory := informers.NewSharedInformerFactory(client, 0)
	seen := controller{
		client:  client,
		claims:  factory.Core().V1().PersistentVolumeClaims().Lister(),
		volumes: factory.Core().V1().PersistentVolumes().Lister(),
		nodes:   factory.Core().V1().Nodes().Lister(),
		classes: factory.Storage().V1().StorageClasses().Lister(),
		root:    *root,
	}
	// Holds at most one: a pass looks at everything.
	changed := make(chan struct{}, 1)
	wake := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	on := cache.ResourceEventHandlerFuncs{
		AddFunc: wake, DeleteFunc: wake, UpdateFunc: func(_, now any) { wake(now) },
	}
	factory.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(on)
	factory.Core().V1().PersistentVolumes().Informer().AddEventHandler(on)
	factory.Storage().V1().StorageClasses().Informer().AddEventHandler(on)
	factory.Start(context.Background().Done())
	factory.WaitForCacheSync(context.Background().Done())
	for {
		if err := seen.pass(context.Background()); err != nil {
			log.Print(err)
		}
		select {
		case <-changed:
		case <-time.After(lookInterval):
		}
	}
}

// Makes, grows and removes what has to be; all of it may be repeated.
func (c *controller) pass(ctx context.Context) error {
	volumes, err := c.volumes.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, volume := range volumes {
		if released(volume) {
			report("delete", volume.Name, c.remove(ctx, volume))
		}
	}
	claims, err := c.claims.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, claim := range claims {
		class := c.ours(claim)
		if class == nil || claim.DeletionTimestamp != nil {
			continue
		}
		if claim.Spec.VolumeName == "" {
			c.provide(ctx, class, claim)
		} else if claim.Status.Phase == core.ClaimBound {
			c.grow(ctx, class, claim)
		}
	}
	return nil
}

func (c *controller) ours(claim *core.PersistentVolumeClaim) *storage.StorageClass {
	if claim.Spec.StorageClassName == nil {
		return nil
	}
	class, err := c.classes.Get(*claim.Spec.StorageClassName)
	if err != nil || class.Provisioner != provisionerName {
		return nil
	}
	return class
}

func report(what, name string, err error) {
	if err != nil {
		log.Printf("%s %s: %v", what, name, err)
		return
	}
	log.Printf("%s %s", what, name)
}
