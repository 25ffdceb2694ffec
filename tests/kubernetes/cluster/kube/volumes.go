package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What happens to one volume: it is made for a claim, grown, removed. A sized volume is an
// XFS file system in a sparse file, since XFS grows while it is mounted.

func released(volume *core.PersistentVolume) bool {
	return volume.Annotations[provisionedBy] == provisionerName &&
		volume.Status.Phase == core.VolumeReleased &&
		volume.Spec.PersistentVolumeReclaimPolicy == core.PersistentVolumeReclaimDelete &&
		volume.DeletionTimestamp == nil
}

func (c *controller) directory(name string) string { return filepath.Join(c.root, name) }

// Beside the directories of volumes, where no pod sees it.
func (c *controller) file(name string) string { return filepath.Join(c.root, "..", name+".xfs") }

func (c *controller) remove(ctx context.Context, volume *core.PersistentVolume) error {
	directory, file := c.directory(volume.Name), c.file(volume.Name)
	if _, err := os.Stat(file); err == nil {
		if mounted(directory) {
			if err := run("umount", directory); err != nil {
				return err
			}
		}
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(directory); err != nil {
		return err
	}
	err := c.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// A claim without a volume gets one, once the scheduler has chosen a node if the class waits.
func (c *controller) provide(ctx context.Context, class *storage.StorageClass, claim *core.PersistentVolumeClaim) {
	name := "pvc-" + string(claim.UID)
	if _, err := c.volumes.Get(name); err == nil {
		return
	}
	node := claim.Annotations[selectedNode]
	waits := class.VolumeBindingMode != nil &&
		*class.VolumeBindingMode == storage.VolumeBindingWaitForFirstConsumer
	if node == "" && waits {
		return
	}
	err := c.make(ctx, class, claim, name, node)
	if !apierrors.IsAlreadyExists(err) {
		report("provide", name, err)
	}
}

func (c *controller) make(ctx context.Context, class *storage.StorageClass, claim *core.PersistentVolumeClaim, name, node string) error {
	directory := c.directory(name)
	size := claim.Spec.Resources.Requests[core.ResourceStorage]
	if err := os.MkdirAll(directory, 0o777); err != nil {
		return err
	}
	if class.Parameters["sized"] == "true" && !mounted(directory) {
		if err := c.makeFileSystem(name, size); err != nil {
			return err
		}
	}
	// Beyond the umask, and on the root of the new file system.
	if err := os.Chmod(directory, 0o777); err != nil {
		return err
	}
	key, value, err := c.reach(class, node)
	if err != nil {
		return err
	}
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{
			Name:        name,
			Annotations: map[string]string{provisionedBy: provisionerName},
		},
		Spec: core.PersistentVolumeSpec{
			Capacity:                      core.ResourceList{core.ResourceStorage: size},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: *class.ReclaimPolicy,
			StorageClassName:              class.Name,
			VolumeMode:                    claim.Spec.VolumeMode,
			ClaimRef: &core.ObjectReference{
				Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace,
				Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
			},
			PersistentVolumeSource: core.PersistentVolumeSource{
				Local: &core.LocalVolumeSource{Path: directory},
			},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{
				NodeSelectorTerms: []core.NodeSelectorTerm{{
					MatchExpressions: []core.NodeSelectorRequirement{{
						Key: key, Operator: core.NodeSelectorOpIn, Values: []string{value},
					}},
				}},
			}},
		},
	}
	_, err = c.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{})
	return err
}

// The label that a node must have to use the volume.
func (c *controller) reach(class *storage.StorageClass, node string) (key, value string, err error) {
	reach := class.Parameters["reach"]
	switch {
	case reach == "any" || node == "":
		return core.LabelOSStable, "linux", nil
	case reach == "zone":
		chosen, err := c.nodes.Get(node)
		if err != nil {
			return "", "", err
		}
		return core.LabelTopologyZone, chosen.Labels[core.LabelTopologyZone], nil
	case reach == "node":
		return core.LabelHostname, node, nil
	}
	return "", "", fmt.Errorf("storage class %s: reach is %q, not node, zone or any", class.Name, reach)
}

// First the volume, then what the claim says of it, each in a pass of its own.
func (c *controller) grow(ctx context.Context, class *storage.StorageClass, claim *core.PersistentVolumeClaim) {
	volume, err := c.volumes.Get(claim.Spec.VolumeName)
	if err != nil {
		return
	}
	want := claim.Spec.Resources.Requests[core.ResourceStorage]
	if want.Cmp(volume.Spec.Capacity[core.ResourceStorage]) > 0 {
		if class.Parameters["sized"] == "true" {
			if err := c.growFileSystem(volume.Name, want); err != nil {
				report("grow", volume.Name, err)
				return
			}
		}
		volume = volume.DeepCopy()
		volume.Spec.Capacity[core.ResourceStorage] = want
		_, err := c.client.CoreV1().PersistentVolumes().Update(ctx, volume, meta.UpdateOptions{})
		report("grow", volume.Name, err)
	} else if want.Cmp(claim.Status.Capacity[core.ResourceStorage]) > 0 {
		claim = claim.DeepCopy()
		claim.Status.Capacity[core.ResourceStorage] = want
		_, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).
			UpdateStatus(ctx, claim, meta.UpdateOptions{})
		report("grow claim", claim.Name, err)
	}
}

func (c *controller) makeFileSystem(name string, size resource.Quantity) error {
	file := c.file(name)
	if err := sparse(file, size); err != nil {
		return err
	}
	if err := run("mkfs.xfs", "-q", "-f", file); err != nil {
		return err
	}
	return run("mount", "-o", "loop", file, c.directory(name))
}

func (c *controller) growFileSystem(name string, size resource.Quantity) error {
	file := c.file(name)
	if err := sparse(file, size); err != nil {
		return err
	}
	device, err := exec.Command("losetup", "--associated", file, "--noheadings", "--output", "NAME").Output()
	if err != nil {
		return fmt.Errorf("losetup %s: %w", file, err)
	}
	if err := run("losetup", "--set-capacity", strings.TrimSpace(string(device))); err != nil {
		return err
	}
	return run("xfs_growfs", c.directory(name))
}

func sparse(file string, size resource.Quantity) error {
	opened, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer opened.Close()
	return opened.Truncate(size.Value())
}

func mounted(directory string) bool {
	return exec.Command("mountpoint", "--quiet", directory).Run() == nil
}

func run(name string, arguments ...string) error {
	output, err := exec.Command(name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, output)
	}
	return nil
}
