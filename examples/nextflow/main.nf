#!/usr/bin/env nextflow
// From raw sections to expression, pathways and hits on a held-out patient, offline on synthetic sections:
//
//   nextflow run examples/nextflow/main.nf --out work
//
// For your own data, leave out `synthetic` and feed `prepare` with pairs of a name and what it reads.
nextflow.enable.dsl = 2

params.out = "results"
params.train = ["P1_S1", "P2_S1"]
params.config = "${projectDir}/../finetune.yaml"
params.drawing = "--size-um 600 --mpp 2 --pitch-um 60 --n-genes 150"
params.crops = "--crop-um 64 --crop-px 32"
params.genes = "ERBB2"
params.tmin = 3

process synthetic {
    output:
    path "data/*.zarr", emit: raw
    path "data/programs.csv", emit: net

    script:
    "sealst synthetic --out data --n-sections 3 ${params.drawing}"
}

process prepare {
    tag "$name"

    input:
    tuple val(name), path(raw, stageAs: "raw/*")

    output:
    tuple val(name), path("${name}.zarr")

    script:
    "sealst prepare $raw --out ${name}.zarr ${params.crops}"
}

process finetune {
    publishDir params.out, mode: "copy"

    input:
    path sections
    path config

    output:
    path "run"

    script:
    "sealst finetune $sections --config $config --out run --resume --json > facts.json"
}

process predict {
    tag "$name"
    publishDir params.out, mode: "copy"

    input:
    tuple val(name), path(section), path(run)

    output:
    tuple val(name), path("${name}.h5ad")

    script:
    "sealst predict $section --model $run --out ${name}.h5ad"
}

process pathways {
    tag "$name"
    publishDir params.out, mode: "copy"

    input:
    tuple val(name), path(table), path(net)

    output:
    path "${name}.pathways.h5ad"

    script:
    "sealst pathways $table --net $net --tmin ${params.tmin} --out ${name}.pathways.h5ad"
}

process retrieve {
    tag "$name"
    publishDir params.out, mode: "copy"

    input:
    tuple val(name), path(table), path(run)

    output:
    path "${name}.hits.csv"

    script:
    "sealst retrieve $table --model $run --genes ${params.genes} --hits ${name}.hits.csv --no-save"
}

workflow {
    synthetic()
    prepare(synthetic.out.raw.flatten().map { store -> [store.baseName, store] })
    sections = prepare.out.branch { name, _store ->
        train: params.train.contains(name)
        test: true
    }
    finetune(sections.train.map { _name, store -> store }.collect(), file(params.config))
    predict(sections.test.combine(finetune.out))
    pathways(predict.out.combine(synthetic.out.net))
    retrieve(predict.out.combine(finetune.out))
}
