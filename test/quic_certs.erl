%%% Certificates as tests need them, good and bad, made with openssl.
-module(quic_certs).

-export([self_signed/1, self_signed/2, authority/1, issue/3, der/1, key_der/1, spki/1, ed25519/1]).
-export([forge/2]).

%% A CA of openssl's, so that the dates of what it issues can be chosen. Each certificate's own
%% extensions come from a section of the environment's variables.
-define(SETTINGS, <<
    "[ca]\ndefault_ca=this\n"
    "[this]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\n"
    "policy=any\nunique_subject=no\ndefault_days=30\ncopy_extensions=none\n"
    "[any]\ncommonName=supplied\n"
    "[leaf]\nbasicConstraints=CA:FALSE\nsubjectAltName=$ENV::NAMES\n"
    "extendedKeyUsage=$ENV::PURPOSE\n"
>>).
-define(NAMES, "DNS:localhost,IP:127.0.0.1,IP:::1").

%% A certificate that vouches for itself: its file and that of its key.
self_signed(Base) -> self_signed(Base, p256).

self_signed(Base, Kind) ->
    {CertFile, KeyFile} = files(Base),
    key(Kind, KeyFile),
    run("req -x509 -new -key '~s' -subj /CN=localhost -days 30 -out '~s' "
        "-addext basicConstraints=critical,CA:FALSE -addext subjectAltName=~s", [
        KeyFile, CertFile, ?NAMES
    ]),
    {CertFile, KeyFile}.

%% A new authority in a folder of its own.
authority(Dir) ->
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    {CertFile, KeyFile} = files(filename:join(Dir, "ca")),
    key(p256, KeyFile),
    run("req -x509 -new -key '~s' -subj /CN=~s -days 30 -out '~s' "
        "-addext basicConstraints=critical,CA:TRUE", [KeyFile, filename:basename(Dir), CertFile]),
    ok = file:write_file(filename:join(Dir, "settings"), ?SETTINGS),
    ok = file:write_file(filename:join(Dir, "index"), <<>>),
    ok = file:write_file(filename:join(Dir, "serial"), <<"01\n">>),
    Dir.

%% A certificate that the authority in `Dir' vouches for. `Facts' may say its `names', `purpose',
%% key `kind', and from when to when it is valid (`from', `to', as YYYYMMDDHHMMSSZ).
issue(Dir, Name, Facts) ->
    {CertFile, KeyFile} = files(filename:join(Dir, Name)),
    key(maps:get(kind, Facts, p256), KeyFile),
    Request = CertFile ++ ".csr",
    run("req -new -key '~s' -subj /CN=~s -out '~s'", [KeyFile, Name, Request]),
    Dates = [
        io_lib:format("-~s ~s ", [Option, maps:get(Key, Facts)])
     || {Key, Option} <- [{from, "startdate"}, {to, "enddate"}], is_map_key(Key, Facts)
    ],
    Names = maps:get(names, Facts, ?NAMES),
    Purpose = maps:get(purpose, Facts, "serverAuth,clientAuth"),
    shell("cd '~s' && NAMES=~s PURPOSE=~s openssl ca -batch -notext -config settings -cert ca.pem "
        "-keyfile ca.key -in '~s' -out '~s' -extensions leaf ~s", [
        Dir, Names, Purpose, Request, CertFile, Dates
    ]),
    {CertFile, KeyFile}.

%% The certificate in a file.
der(CertFile) ->
    [{'Certificate', Der, not_encrypted} | _] = entries(CertFile),
    Der.

%% The key in a file, as `ssl' has it.
key_der(KeyFile) ->
    [{Type, Der, not_encrypted} | _] = entries(KeyFile),
    {Type, Der}.

%% SHA-256 of the key in a certificate.
spki(CertFile) -> crypto:hash(sha256, key_info(CertFile)).

%% The Ed25519 key in a certificate: what follows the 12 bytes that say that it is one.
ed25519(CertFile) ->
    <<_:12/binary, Key:32/binary>> = key_info(CertFile),
    Key.

key_info(CertFile) ->
    File = CertFile ++ ".spki",
    Format = "openssl x509 -in '~s' -noout -pubkey | openssl pkey -pubin -outform der -out '~s'",
    shell(Format, [CertFile, File]),
    {ok, Info} = file:read_file(File),
    Info.

%% The same certificate with a signature that is not the authority's: it ends in another byte.
forge(CertFile, Forged) ->
    Der = der(CertFile),
    Signed = byte_size(Der) - 1,
    <<Rest:Signed/binary, Last>> = Der,
    Entry = {'Certificate', <<Rest/binary, (Last bxor 1)>>, not_encrypted},
    ok = file:write_file(Forged, public_key:pem_encode([Entry])).

entries(File) ->
    {ok, Pem} = file:read_file(File),
    public_key:pem_decode(Pem).

files(Base) -> {Base ++ ".pem", Base ++ ".key"}.

key(p256, File) -> run("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out '~s'", [File]);
key(rsa, File) -> run("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out '~s'", [File]);
key(ed25519, File) -> run("genpkey -algorithm ED25519 -out '~s'", [File]).

run(Format, Arguments) -> shell("openssl " ++ Format, Arguments).

shell(Format, Arguments) ->
    Command = lists:flatten(io_lib:format(Format, Arguments)),
    Output = os:cmd("(" ++ Command ++ ") 2>&1 && echo done"),
    case string:find(Output, "done\n", trailing) of
        "done\n" -> ok;
        _ -> error({openssl, Command, Output})
    end.
