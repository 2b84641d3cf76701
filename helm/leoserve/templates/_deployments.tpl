{{/*
What the templates range over. Each takes an empty map `into` and fills it, name → values, with one entry for each
deployment of the release: one called like the release, or one for each of `models` with its overrides laid over the
values at the top. Refuses what contradicts itself.

    {{- $deployments := dict }}{{ include "leoserve.collect" (dict "root" $ "into" $deployments) }}
    {{- range $name, $v := $deployments }}{{ $d := dict "root" $ "name" $name "v" $v }}

The other templates here take such a `$d`: the root, the name, the deployment's own values.
*/}}
{{- define "leoserve.collect" -}}
{{- $root := .root }}
{{- $into := .into }}
{{- $base := include "leoserve.base" $root }}
{{- $common := omit $root.Values "models" }}
{{- range $model, $overrides := $root.Values.models }}
{{- $values := deepCopy $common }}
{{- include "leoserve.overlay" (list $values $overrides) }}
{{- $_ := set $into (printf "%s-%s" $base $model) $values }}
{{- else }}
{{- $_ := set $into $base (deepCopy $common) }}
{{- end }}
{{- include "leoserve.refuse" . }}
{{- end }}

{{/* Lays the second map of the list over the first, map by map. What is false, 0 or empty counts; null takes a key away. */}}
{{- define "leoserve.overlay" -}}
{{- $under := index . 0 }}
{{- range $key, $value := index . 1 }}
{{- if kindIs "invalid" $value }}
{{- $_ := unset $under $key }}
{{- else if and (kindIs "map" $value) (kindIs "map" (get $under $key)) }}
{{- include "leoserve.overlay" (list (get $under $key) $value) }}
{{- else }}
{{- $_ := set $under $key $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name of the release's things. Takes the root. */}}
{{- define "leoserve.base" -}}
{{- .Values.fullnameOverride | default .Release.Name }}
{{- end }}

{{/* The account of the pods. Takes the root. */}}
{{- define "leoserve.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "leoserve.base" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* The Secret with the keys. */}}
{{- define "leoserve.keySecret" -}}
{{- .v.apiKeys.existingSecret | default (printf "%s-keys" (include "leoserve.base" .root)) }}
{{- end }}

{{/* The claim mounted at /cache; nothing where it is a volume of the node. */}}
{{- define "leoserve.cacheClaim" -}}
{{- if .v.cache.existingClaim }}{{ .v.cache.existingClaim }}
{{- else if .v.cache.persistent }}{{ .name }}-cache
{{- end }}
{{- end }}

{{/* Most replicas that there can be. */}}
{{- define "leoserve.mostReplicas" -}}
{{- ternary .v.replicas .v.autoscaling.maxReplicas (eq .v.autoscaling.by "none") | int }}
{{- end }}
