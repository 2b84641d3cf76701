{{/* What is allowed and may not be meant. Takes a `$d`; one line each. */}}
{{- define "leoserve.warnings" }}
{{- $v := .v }}
{{- $parallel := $v.options.tensor_parallel_size | default (mul $v.gpu.count $v.nodes) | int }}
{{- if gt $parallel 1 }}
{{ $parallel }} GPUs to one replica: leoserve {{ .root.Chart.AppVersion }} has no tensor parallelism yet and refuses to start. Serve a model that fits one GPU.
{{- end }}
{{- if eq (int $v.gpu.count) 0 }}
no GPU is asked for (gpu.count 0): the CPU serves, which is for small models and trials.
{{- end }}
{{- if not $v.apiKeys.enabled }}
no key is needed (apiKeys.enabled false): whoever reaches the Service may use it.
{{- end }}
{{- if and (not $v.networkPolicy.enabled) (ne $v.service.type "ClusterIP") }}
networkPolicy is off and the Service is a {{ $v.service.type }}: the pods are open to everybody who reaches a node.
{{- end }}
{{- if and (or $v.ingress.enabled $v.httpRoute.enabled $v.inferencePool.enabled (ne $v.service.type "ClusterIP")) $v.networkPolicy.enabled (eq (toJson $v.networkPolicy.clients) "[{\"podSelector\":{}}]") }}
networkPolicy.clients lets pods of this namespace in, and nobody else: an ingress controller, a gateway or clients from elsewhere have to be named there.
{{- end }}
{{- if eq $v.model.source "hostPath" }}
a hostPath volume is against PodSecurity's restricted and baseline: the namespace must allow it.
{{- end }}
{{- if and (eq $v.model.source "image") (not (semverCompare ">=1.35.0-0" .root.Capabilities.KubeVersion.Version)) }}
image volumes have to be enabled in this Kubernetes {{ .root.Capabilities.KubeVersion.Version }} (feature gate ImageVolume).
{{- end }}
{{- if and (eq $v.model.source "hub") (not (include "leoserve.cacheClaim" .)) (gt (include "leoserve.mostReplicas" . | int) 1) }}
each new pod downloads the model again: cache.persistent with accessMode ReadWriteMany, model.source pvc or image do not.
{{- end }}
{{- if and (eq $v.model.source "hub") (not $v.model.hub.revision) (gt (include "leoserve.mostReplicas" . | int) 1) }}
model.hub.revision is empty: a replica that starts later may serve other weights, if the repository's main branch has some by then.
{{- end }}
{{- end }}
