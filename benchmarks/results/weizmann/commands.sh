#!/bin/bash
# All that results.csv and predictions.csv hold: bash commands.sh FOLDER_OF_WEIZMANN. Each part goes on where it stopped.
set -e
here=$(cd "$(dirname "$0")" && pwd)
test -f shards/dataset.json || extract-flow "$1" shards --short-side keep
printf '%s\n' 'daria_*' 'denis_*' 'eli_*' > test.txt
printf '%s\n' 'ido_*' 'ira_*' 'lena_*' 'lyova_*' 'moshe_*' 'shahar_*' > train.txt

train() { # NAME, and what differs
    name=$1
    shift
    run-benchmark --recipe small --data shards --train-split train.txt --test-split test.txt --resume --work-dir "runs/$name" "$@"
}

# (a) The five architectures.
for seed in 0 1 2; do
    train "i3d-seed-$seed" --arch i3d --seed $seed
    for stream in joint rgb flow; do
        train "two-stream-$stream-seed-$seed" --arch two-stream --stream $stream --seed $seed
    done
done
for arch in 3d-fused convnet-lstm c3d; do
    train "$arch-seed-0" --arch $arch --seed 0
done

# (b) Transfer from six classes to the other four: Original, Fixed, Full-FT.
train pre-seed-0 --arch i3d --classes bend,jack,pjump,side,wave1,wave2
for seed in 0 1 2; do
    moving="--arch i3d --classes jump,run,skip,walk --seed $seed"
    train "original-seed-$seed" $moving
    train "fixed-seed-$seed" $moving --init runs/pre-seed-0 --set fixed_features=true
    train "full-ft-seed-$seed" $moving --init runs/pre-seed-0
done
# Fixed on the features of a network that was trained on the same four classes.
own="--arch i3d --classes jump,run,skip,walk --set fixed_features=true"
train fixed-own $own --init runs/original-seed-1
train fixed-400 $own --init runs/pre-seed-0 --epochs 400

# The same as a table of the paper, with seed 0: six classes stand for Kinetics, four for UCF-101. Cells that cannot be run
# here (weights of ImageNet without internet, HMDB-51) make it end with 3.
run-benchmark table 4 --archs i3d --recipe small --data kinetics=shards,ucf101=shards \
    --classes kinetics=bend,jack,pjump,side,wave1,wave2 --classes ucf101=jump,run,skip,walk \
    --train-split kinetics=train.txt --test-split kinetics=test.txt --train-split ucf101=train.txt --test-split ucf101=test.txt ||
    test $? = 3

# (c) Other protocols on the same checkpoints.
for seed in 0 1 2; do
    for protocol in paper 10x3; do
        run-benchmark evaluate "runs/i3d-seed-$seed" --protocol $protocol
    done
done

# Neighbours.
for pair in "i3d-seed-0 two-stream-joint-seed-0" "3d-fused-seed-0 two-stream-joint-seed-0" "3d-fused-seed-0 c3d-seed-0" \
    "i3d-seed-0 3d-fused-seed-0" "convnet-lstm-seed-0 c3d-seed-0" "i3d-seed-0/flow i3d-seed-0/rgb" \
    "i3d-seed-0/joint i3d-seed-0/rgb" "i3d-seed-0/evaluate-10x3 i3d-seed-0/evaluate-paper" \
    "full-ft-seed-0 original-seed-0" "full-ft-seed-0 fixed-seed-0"; do
    (cd runs && run-benchmark compare $pair && echo)
done > compare.txt
python "$here/../collect.py" runs results.csv predictions.csv
