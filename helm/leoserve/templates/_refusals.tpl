{{/*
What contradicts itself, or cannot be served, is refused with a sentence that says what to do. Each template below takes
a `$d` and writes one line for each thing that is wrong.
*/}}
{{- define "leoserve.refuse" -}}
{{- $root := .root }}
{{- $lines := include "leoserve.refuse.release" . | splitList "\n" }}
{{- range $name, $v := .into }}
{{- $d := dict "root" $root "name" $name "v" $v "all" $.into }}
{{- range $part := list "name" "model" "devices" "options" "cache" "replicas" "traffic" "pods" }}
{{- range $line := include (printf "leoserve.refuse.%s" $part) $d | splitList "\n" }}
{{- if trim $line }}{{ $lines = append $lines (printf "%s: %s" $name (trim $line)) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- with without $lines "" }}{{ fail (printf "these values cannot be served:\n%s" (join "\n" .)) }}{{ end }}
{{- end }}

{{- define "leoserve.refuse.name" }}
{{- if gt (len .name) 46 }}
the name is longer than 46 characters, which leaves no room for what Kubernetes puts behind it: choose a shorter release, model or fullnameOverride
{{- end }}
{{- if not (regexMatch "^[a-z]" .name) }}
a Service's name begins with a letter: choose another release name, or set fullnameOverride
{{- end }}
{{- end }}

{{- define "leoserve.refuse.model" }}
{{- $model := .v.model }}
{{- $cluster := .root.Capabilities.KubeVersion.Version }}
{{- if and (eq $model.source "hub") (not $model.hub.id) }}
model.hub.id is empty: name a repository such as LeoLM/leo-hessianai-7b-chat, or choose another model.source
{{- else if and (eq $model.source "pvc") (not $model.pvc.claim) }}
model.source is pvc: set model.pvc.claim to the claim that holds the model's folder
{{- else if and (eq $model.source "hostPath") (not $model.hostPath.path) }}
model.source is hostPath: set model.hostPath.path to the model's folder on the nodes
{{- else if and (eq $model.source "image") (not $model.image.reference) }}
model.source is image: set model.image.reference to the OCI image that holds the model's files
{{- else if and (eq $model.source "image") (not (semverCompare ">=1.33.0-0" $cluster)) }}
model.source is image, and this cluster is Kubernetes {{ $cluster }}: image volumes need 1.33 or newer; take pvc or hub
{{- end }}
{{- if and (has $model.source (list "pvc" "image")) (not (get (get $model $model.source) "path")) (not .v.options.served_model_name) }}
the model lies at the root of its volume, so no folder gives it a name: set options.served_model_name to what clients ask for, or model.{{ $model.source }}.path
{{- end }}
{{- if and (eq $model.source "hub") $model.hub.endpoint .v.networkPolicy.enabled }}
{{- $url := urlParse $model.hub.endpoint }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- if ne $port (int .v.networkPolicy.hubPort | toString) }}
model.hub.endpoint is on port {{ $port }}, to which the pods may not talk: set networkPolicy.hubPort to {{ $port }}
{{- end }}
{{- end }}
{{- end }}

{{- define "leoserve.refuse.devices" }}
{{- $gpus := mul .v.gpu.count .v.nodes | int }}
{{- $parallel := .v.options.tensor_parallel_size | default 1 | int }}
{{- if and (eq $gpus 0) (eq (.v.options.device | default "auto") "cuda") }}
options.device is cuda, and gpu.count asks for no GPU: set gpu.count, or leave options.device out
{{- end }}
{{- if and (gt $gpus 0) (eq (.v.options.device | default "auto") "cpu") }}
options.device is cpu, and gpu.count asks for {{ .v.gpu.count }} GPUs that nobody would use: set gpu.count to 0
{{- end }}
{{- if and (gt $gpus 0) (hasSuffix "-cpu" .v.image.tag) }}
image.tag {{ .v.image.tag }} is an image without CUDA, and gpu.count asks for GPUs: set gpu.count to 0, or take another tag
{{- end }}
{{- if and (eq $gpus 0) (gt (int .v.nodes) 1) }}
nodes is {{ .v.nodes }}, and gpu.count is 0: a model is spread over nodes by their GPUs only
{{- end }}
{{- if gt $parallel (max 1 $gpus) }}
options.tensor_parallel_size is {{ $parallel }}, and each replica has {{ $gpus }} GPUs (gpu.count × nodes): raise gpu.count or nodes, or lower it
{{- end }}
{{- if and (gt $gpus 1) (lt $parallel $gpus) (hasKey .v.options "tensor_parallel_size") }}
options.tensor_parallel_size is {{ $parallel }}, and each replica has {{ $gpus }} GPUs (gpu.count × nodes), some of which nobody would use: leave it out to use them all, or ask for fewer
{{- end }}
{{- end }}

{{- define "leoserve.refuse.options" }}
{{- $options := .v.options }}
{{- if not $options.request_timeout }}
options.request_timeout is empty: the pods' grace period is computed from the longest answer, so give it in seconds
{{- end }}
{{- if lt ($options.max_num_batched_tokens | default 1000000 | int) ($options.max_num_seqs | default 256 | int) }}
options.max_num_batched_tokens is less than options.max_num_seqs ({{ $options.max_num_seqs | default 256 }} if left out), each of which takes a token of every step: raise the one, or lower the other
{{- end }}
{{- if and .v.httpRoute.enabled (ne .v.httpRoute.path "/") $options.root_path (ne $options.root_path .v.httpRoute.path) }}
options.root_path is {{ $options.root_path }}, and httpRoute.path is {{ .v.httpRoute.path }}: leave options.root_path out, the route's path is taken
{{- end }}
{{- end }}

{{- define "leoserve.refuse.cache" }}
{{- $cache := .v.cache }}
{{- $several := or (gt (include "leoserve.mostReplicas" . | int) 1) (gt (int .v.nodes) 1) (not (has (toString .v.rollout.maxSurge) (list "0" "0%"))) }}
{{- if and $cache.persistent $cache.existingClaim }}
cache.existingClaim is there, and cache.persistent asks for a new claim: give one of them
{{- end }}
{{- if and $cache.storageClass (not $cache.persistent) }}
cache.storageClass has no effect without a new claim: set cache.persistent
{{- end }}
{{- if and $several $cache.persistent (not $cache.existingClaim) (ne $cache.accessMode "ReadWriteMany") }}
cache.accessMode {{ $cache.accessMode }} lets the pods of one node alone have the claim, and there may be several pods (replicas, nodes, autoscaling or rollout.maxSurge): take ReadWriteMany with a storage class that has it, or leave cache.persistent out
{{- end }}
{{- range $where, $claim := dict "cache.existingClaim" $cache.existingClaim "model.pvc.claim" (ternary .v.model.pvc.claim "" (eq .v.model.source "pvc")) }}
{{- if and $claim (or $several (gt (len $.all) 1)) }}
{{- $modes := dig "spec" "accessModes" list (lookup "v1" "PersistentVolumeClaim" $.root.Release.Namespace $claim | default dict) }}
{{- if and $modes (not (has "ReadWriteMany" $modes)) (not (and (has "ReadOnlyMany" $modes) (eq $where "model.pvc.claim"))) }}
{{ $where }} {{ $claim }} has access mode {{ join ", " $modes }}, and there may be several pods, on several nodes: take a claim with ReadWriteMany{{ if eq $where "model.pvc.claim" }} or ReadOnlyMany{{ end }}, or one replica
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "leoserve.refuse.replicas" }}
{{- $scaling := .v.autoscaling }}
{{- $none := list "0" "0%" }}
{{- if and (gt (int .v.nodes) 1) (ne $scaling.by "none") }}
nodes is {{ .v.nodes }} and autoscaling.by is {{ $scaling.by }}: a model over several nodes is not scaled by its pods' metrics; set replicas instead
{{- end }}
{{- if and (ne $scaling.by "none") (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
autoscaling.minReplicas {{ $scaling.minReplicas }} is more than autoscaling.maxReplicas {{ $scaling.maxReplicas }}
{{- end }}
{{- if and (eq $scaling.by "keda") (not $scaling.prometheus) }}
autoscaling.by is keda: set autoscaling.prometheus to the address of the Prometheus that scrapes the pods
{{- end }}
{{- if and .v.podDisruptionBudget.enabled (has (toString .v.podDisruptionBudget.maxUnavailable) $none) }}
podDisruptionBudget.maxUnavailable is {{ .v.podDisruptionBudget.maxUnavailable }}, so no node with such a pod could ever be drained: allow 1 or more
{{- end }}
{{- if and (has (toString .v.rollout.maxSurge) $none) (has (toString .v.rollout.maxUnavailable) $none) }}
rollout.maxSurge and rollout.maxUnavailable are both 0, so no pod could ever be replaced: allow one of them
{{- end }}
{{- if le (int .v.rollout.deadlineSeconds) (int .v.probes.startupSeconds) }}
rollout.deadlineSeconds {{ .v.rollout.deadlineSeconds }} is not more than probes.startupSeconds {{ .v.probes.startupSeconds }}, so a rollout would have failed before its first pod may be ready: raise it
{{- end }}
{{- end }}

{{- define "leoserve.refuse.traffic" }}
{{- if and .v.ingress.enabled (not .v.ingress.hosts) }}
ingress.enabled without a host would take every host's requests: name one in ingress.hosts
{{- end }}
{{- if and .v.httpRoute.enabled (not .v.httpRoute.parentRefs) }}
httpRoute.enabled: name the Gateway that takes it in httpRoute.parentRefs
{{- end }}
{{- if and .v.inferencePool.enabled (not .v.inferencePool.endpointPicker) }}
inferencePool.enabled: set inferencePool.endpointPicker to the picker's Service
{{- end }}
{{- if and .v.apiKeys.existingSecret (not .v.apiKeys.enabled) }}
apiKeys.existingSecret is given, and apiKeys.enabled is false: enable the keys, or leave the Secret out
{{- end }}
{{- end }}

{{- define "leoserve.refuse.pods" }}
{{- range $key := concat (keys .v.podLabels) (keys .root.Values.commonLabels) | uniq | sortAlpha }}
{{- if or (regexMatch "^app\\.kubernetes\\.io/(name|instance|component|part-of|version|managed-by)$" $key) (has $key (list "helm.sh/chart" "llm-d.ai/engine-type")) }}
the label {{ $key }} is the chart's own, by which pods are found: take another in podLabels and commonLabels
{{- end }}
{{- end }}
{{- range .v.extraEnv }}
{{- if hasPrefix "LEOSERVE_" .name }}
extraEnv {{ .name }}: give it as options.{{ trimPrefix "LEOSERVE_" .name | lower }}, where it is checked, or as the value that the chart has for it
{{- end }}
{{- if eq (hasKey . "value") (hasKey . "valueFrom") }}
extraEnv {{ .name }}: give value or valueFrom, one of them
{{- end }}
{{- if has .name (list "HF_HUB_OFFLINE" "HF_TOKEN_PATH" "HF_ENDPOINT") }}
extraEnv {{ .name }}: the chart sets it by what model.hub says
{{- end }}
{{- $secret := regexMatch "(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_?KEY)$" (upper .name) }}
{{- if and (hasKey . "value") (or $secret (regexMatch "://[^/@]+:[^/@]+@" (.value | default ""))) }}
extraEnv {{ .name }}: it holds a secret, which would stand in the release and in every pod: take valueFrom.secretKeyRef
{{- end }}
{{- end }}
{{- range .v.extraVolumes }}
{{- if has .name (list "options" "cache" "tmp" "shm" "model" "keys" "hub-token") }}
extraVolumes {{ .name }}: a volume of the chart has that name: take another
{{- end }}
{{- end }}
{{- end }}

{{/* What is wrong with the release as a whole. Takes what `leoserve.collect` takes. */}}
{{- define "leoserve.refuse.release" }}
{{- if and .root.Values.podMonitor.enabled .root.Values.serviceMonitor.enabled }}
podMonitor and serviceMonitor are both enabled, so every series would be there twice: take one
{{- end }}
{{- $taken := dict }}
{{- range $name, $v := .into }}
{{- $places := list }}
{{- if $v.ingress.enabled }}
{{- range $v.ingress.hosts }}{{ $places = append $places (printf "ingress host %s" .) }}{{ end }}
{{- end }}
{{- if $v.httpRoute.enabled }}
{{- range $v.httpRoute.hostnames | default (list "*") }}{{ $places = append $places (printf "httpRoute %s%s" . $v.httpRoute.path) }}{{ end }}
{{- end }}
{{- range $place := $places | uniq }}
{{- if hasKey $taken $place }}
{{ get $taken $place }} and {{ $name }} both want the {{ $place }}: give each model its own
{{- end }}
{{- $_ := set $taken $place $name }}
{{- end }}
{{- end }}
{{- end }}
