{{/* Where the volumes are that the server and the download share. */}}
{{- define "leoserve.mounts" -}}
- name: options
  mountPath: /etc/leoserve/options
  readOnly: true
- name: cache
  mountPath: /cache
- name: tmp
  mountPath: /tmp
{{- end }}

{{/* The volumes of a pod. */}}
{{- define "leoserve.volumes" -}}
{{- $v := .v -}}
- name: options
  configMap:
    name: {{ .name }}-options
- name: cache
  {{- with include "leoserve.cacheClaim" . }}
  persistentVolumeClaim:
    claimName: {{ . | quote }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ $v.cache.size }}
  {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: {{ $v.temporary }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ $v.sharedMemory }}
{{- include "leoserve.modelVolume" . }}
{{- if $v.apiKeys.enabled }}
{{ include "leoserve.keyVolume" . }}
{{- end }}
{{- if and (eq $v.model.source "hub") $v.model.hub.tokenSecret }}
- name: hub-token
  secret:
    secretName: {{ $v.model.hub.tokenSecret | quote }}
    defaultMode: 0440
    items:
      - key: {{ $v.model.hub.tokenKey | quote }}
        path: token
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The volume with the model, where it is mounted. */}}
{{- define "leoserve.modelVolume" -}}
{{- $model := .v.model }}
{{- if eq $model.source "pvc" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ $model.pvc.claim | quote }}
    readOnly: true
{{- else if eq $model.source "hostPath" }}
- name: model
  hostPath:
    path: {{ $model.hostPath.path | quote }}
    type: Directory
{{- else if eq $model.source "image" }}
- name: model
  image:
    reference: {{ $model.image.reference | quote }}
    pullPolicy: {{ $model.image.pullPolicy }}
{{- end }}
{{- end }}

{{/* The volume with the file of keys. The kubelet puts a new file there when the Secret changes. */}}
{{- define "leoserve.keyVolume" -}}
- name: keys
  secret:
    secretName: {{ include "leoserve.keySecret" . | quote }}
    defaultMode: 0440
    items:
      - key: {{ .v.apiKeys.secretKey | quote }}
        path: keys
{{- end }}
