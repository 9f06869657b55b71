{{- define "causeway.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "causeway.pullSecrets" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "causeway.apiserver" -}}
{{- with .Values.kubernetesService.host -}}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.kubernetesService.port }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | toString | quote }}
{{- end }}
{{- end }}

{{- /* host and port of an address such as 127.0.0.1:9099 or [::1]:9099 */ -}}
{{- define "causeway.probe" -}}
{{- $port := regexFind "[0-9]+$" .address -}}
httpGet: {host: "{{ .address | trimSuffix (printf ":%s" $port) | trimAll "[]" }}", port: {{ $port }}, path: {{ .path }}}
{{- end }}
