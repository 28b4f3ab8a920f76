// Command reference is the reference library for eStargz at work: it reads what
// crfs convert made, verifying every chunk, and makes layers for crfs to read.
//
//	reference check LAYOUT [TAG]   every layer of an image in an OCI layout
//	reference build TAR OUT        a tar file -> a layer; prints its TOC digest
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	log.SetFlags(0)
	args := os.Args[1:]
	switch {
	case len(args) >= 2 && args[0] == "check":
		tag := ""
		if len(args) > 2 {
			tag = args[2]
		}
		if err := checkLayout(args[1], tag); err != nil {
			log.Fatal(err)
		}
	case len(args) == 3 && args[0] == "build":
		if err := build(args[1], args[2]); err != nil {
			log.Fatal(err)
		}
	default:
		log.Fatal("usage: reference check LAYOUT [TAG] | reference build TAR OUT")
	}
}

func build(tarPath, out string) error {
	in, err := os.Open(tarPath)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	r, err := estargz.Build(io.NewSectionReader(in, 0, st.Size()))
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	if err := r.Close(); err != nil {
		return err
	}
	fmt.Println(r.TOCDigest())
	return f.Close()
}

func blobPath(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}

func readJSON(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

func checkLayout(layout, tag string) error {
	var index ocispec.Index
	if err := readJSON(filepath.Join(layout, "index.json"), &index); err != nil {
		return err
	}
	found := false
	for _, d := range index.Manifests {
		if tag != "" && d.Annotations[ocispec.AnnotationRefName] != tag {
			continue
		}
		found = true
		if err := checkDescriptor(layout, d); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("no manifest tagged %q in %s", tag, layout)
	}
	return nil
}

// checkDescriptor follows indexes down to manifests and checks their layers.
func checkDescriptor(layout string, d ocispec.Descriptor) error {
	var both struct {
		Manifests []ocispec.Descriptor
		Layers    []ocispec.Descriptor
	}
	if err := readJSON(blobPath(layout, d.Digest), &both); err != nil {
		return err
	}
	for _, m := range both.Manifests {
		if err := checkDescriptor(layout, m); err != nil {
			return err
		}
	}
	for _, l := range both.Layers {
		n, err := checkLayer(blobPath(layout, l.Digest), l)
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		fmt.Printf("%s: %d chunks verified\n", l.Digest, n)
	}
	return nil
}

func checkLayer(file string, l ocispec.Descriptor) (chunks int, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r, err := estargz.Open(io.NewSectionReader(f, 0, l.Size))
	if err != nil {
		return 0, err
	}
	toc, err := digest.Parse(l.Annotations[estargz.TOCJSONDigestAnnotation])
	if err != nil {
		return 0, fmt.Errorf("the TOC digest in the annotation: %w", err)
	}
	v, err := r.VerifyTOC(toc)
	if err != nil {
		return 0, err
	}
	root, ok := r.Lookup("")
	if !ok {
		return 0, fmt.Errorf("no root folder")
	}
	err = walk(r, v, root, "", &chunks)
	return chunks, err
}

func walk(r *estargz.Reader, v estargz.TOCEntryVerifier, dir *estargz.TOCEntry, at string, chunks *int) (err error) {
	dir.ForeachChild(func(base string, e *estargz.TOCEntry) bool {
		name := path.Join(at, base)
		switch e.Type {
		case "dir":
			err = walk(r, v, e, name, chunks)
		case "reg":
			if err = checkFile(r, v, e, chunks); err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
		}
		return err == nil
	})
	return err
}

func checkFile(r *estargz.Reader, v estargz.TOCEntryVerifier, e *estargz.TOCEntry, chunks *int) error {
	if e.Size == 0 {
		return nil
	}
	data, err := r.OpenFile(e.Name)
	if err != nil {
		return err
	}
	for off := int64(0); off < e.Size; {
		c, ok := r.ChunkEntryForOffset(e.Name, off)
		if !ok {
			return fmt.Errorf("no chunk at offset %d", off)
		}
		size := c.ChunkSize
		if size == 0 {
			size = e.Size - c.ChunkOffset
		}
		check, err := v.Verifier(c)
		if err != nil {
			return err
		}
		if _, err := io.Copy(check, io.NewSectionReader(data, c.ChunkOffset, size)); err != nil {
			return err
		}
		if !check.Verified() {
			return fmt.Errorf("the chunk at offset %d has another digest", off)
		}
		off = c.ChunkOffset + size
		*chunks++
	}
	return nil
}
