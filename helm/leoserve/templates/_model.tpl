{{/* What the server is to load: a hub id, a folder, or nothing for the bundled model. */}}
{{- define "leoserve.model" -}}
{{- $model := .v.model }}
{{- if eq $model.source "hub" }}{{ $model.hub.id }}
{{- else if eq $model.source "pvc" }}{{ printf "/models/%s" $model.pvc.path | trimSuffix "/" }}
{{- else if eq $model.source "hostPath" }}{{ printf "/models/%s" (base $model.hostPath.path) }}
{{- else if eq $model.source "image" }}{{ printf "/models/%s" $model.image.path | trimSuffix "/" }}
{{- end }}
{{- end }}

{{/* The name under which clients ask for the model: the server's own rule. */}}
{{- define "leoserve.servedName" -}}
{{- if .v.options.served_model_name }}{{ first .v.options.served_model_name }}
{{- else if eq .v.model.source "hub" }}{{ .v.model.hub.id }}
{{- else if eq .v.model.source "bundled" }}leoserve-demo
{{- else }}{{ base (include "leoserve.model" .) }}
{{- end }}
{{- end }}

{{/* The server's options, the contents of its YAML file. */}}
{{- define "leoserve.options" -}}
{{- $options := deepCopy .v.options }}
{{- with include "leoserve.model" . }}{{ $_ := set $options "model" . }}{{ end }}
{{- if eq .v.model.source "hub" }}
{{- $_ := set $options "download_dir" "/cache/hub" }}
{{- with .v.model.hub.revision }}{{ $_ := set $options "revision" . }}{{ end }}
{{- end }}
{{- $_ := set $options "shutdown_grace" .v.options.request_timeout }}
{{- $gpus := mul .v.gpu.count .v.nodes }}
{{- /* A GPU that the driver does not show would be a model on the CPU, for which the memory is not there. */}}
{{- if and (gt $gpus 0) (not (hasKey $options "device")) }}{{ $_ := set $options "device" "cuda" }}{{ end }}
{{- if and (gt $gpus 1) (not (hasKey $options "tensor_parallel_size")) }}
{{- $_ := set $options "tensor_parallel_size" $gpus }}
{{- end }}
{{- if and .v.httpRoute.enabled (ne .v.httpRoute.path "/") }}{{ $_ := set $options "root_path" .v.httpRoute.path }}{{ end }}
{{- toYaml $options }}
{{- end }}

{{/* The server's image. */}}
{{- define "leoserve.image" -}}
{{- $image := .v.image }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ $image.tag | default (printf "%s%s" .root.Chart.AppVersion (ternary "-cpu" "" (eq (int .v.gpu.count) 0))) }}
{{- end }}
{{- end }}
