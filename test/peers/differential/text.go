package differential

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// readScripts reads testdata/*.txt: a script for each file.
//
// A request opens with "==== name". The next line is method and path, then come headers, each "Name: value" (no value: not
// sent), and after an empty line the body, in YAML unless a Content-Type says something else. "Keep-x: metadata.uid" keeps a part
// of the answer, which later paths and bodies have as ${x}. Lines before the first request say what the script is about.
func readScripts(dir string) (scripts []Script, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		if name == "differences" {
			continue
		}
		s := Script{Name: name}
		for _, section := range header.Split(string(text), -1)[1:] {
			step, err := parseStep(section)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			s.Steps = append(s.Steps, step)
		}
		scripts = append(scripts, s)
	}
	return scripts, nil
}

func parseStep(text string) (Step, error) {
	head, body, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(strings.TrimRight(head, "\n"), "\n")
	step := Step{Name: lines[0], Header: map[string]string{}, Keep: map[string]string{}, Body: strings.TrimSpace(body)}
	if len(lines) < 2 {
		return step, fmt.Errorf("%s: no method and path", step.Name)
	}
	var ok bool
	if step.Method, step.Path, ok = strings.Cut(lines[1], " "); !ok {
		return step, fmt.Errorf("%s: %q is no method and path", step.Name, lines[1])
	}
	if step.Body != "" {
		step.Header["Content-Type"] = "application/yaml"
	}
	for _, line := range lines[2:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return step, fmt.Errorf("%s: %q is no header", step.Name, line)
		}
		if kept, is := strings.CutPrefix(name, "Keep-"); is {
			step.Keep[kept] = strings.TrimSpace(value)
			continue
		}
		step.Header[name] = strings.TrimSpace(value)
	}
	return step, nil
}
