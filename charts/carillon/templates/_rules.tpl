{{/* What the operator does in a namespace, and no more: what it watches it lists, what it makes
     it applies. What others do to what it made, it sees by watches that ask for metadata of
     objects with its label only. Of Secrets it reads by name those that ImClusters name and those
     that it made; that it may list them too is what a watch takes, and nothing that who may make
     Pods could not read. */}}
{{- define "carillon.rules" -}}
- apiGroups: [carillon.dev]
  resources: [imclusters]
  verbs: [get, list, watch, update, patch]
- apiGroups: [carillon.dev]
  resources: [imclusters/status]
  verbs: [get, update, patch]
# So that what it makes may be owned by them, with blockOwnerDeletion.
- apiGroups: [carillon.dev]
  resources: [imclusters/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods, persistentvolumeclaims]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, secrets, serviceaccounts]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, create, update, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
